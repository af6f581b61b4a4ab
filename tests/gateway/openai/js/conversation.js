// Talks to the service as a program would that uses OpenAI's SDK, and prints what it saw as one JSON object.
// The test that runs it (test_javascript_sdk.py) says what the model answers.

import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0, timeout: 60_000 });
const seen = {};

const messages = [
  { role: "system", content: "Answer like a pirate." },
  { role: "user", content: "How do I keep messages?" },
];
const whole = await client.chat.completions.create({ model: "test-model", messages });
seen.whole = whole;

messages.push(whole.choices[0].message, { role: "user", content: "And where?" });
const stream = await client.chat.completions.create({
  model: "default",
  messages,
  stream: true,
  stream_options: { include_usage: true },
});
seen.chunks = [];
for await (const chunk of stream) seen.chunks.push(chunk);

const text = seen.chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
messages.push({ role: "assistant", content: text }, { role: "user", content: "Why?" });
const helper = client.chat.completions.stream({ model: "default", messages });
seen.final = await helper.finalChatCompletion();

seen.models = (await client.models.list()).data.map((model) => model.id);
seen.model = (await client.models.retrieve("local/test-model")).id;

async function failure(work) {
  try {
    await work();
  } catch (error) {
    const { status, code, param, type } = error;
    return { kind: error.constructor.name, isAPIError: error instanceof OpenAI.APIError, status, code, param, type };
  }
  return null;
}

const ask = (body) => client.chat.completions.create({ model: "default", messages: [{ role: "user", content: "How?" }], ...body });
seen.refused = await failure(() => ask({ n: 2 }));
seen.unknown = await failure(() => ask({ model: "gpt-4o-mini" }));
seen.early = await failure(() => ask({ messages: [{ role: "user", content: "Fail early" }] }));
seen.late = await failure(async () => {
  const failing = await ask({ messages: [{ role: "user", content: "Fail late" }], stream: true });
  for await (const chunk of failing) seen.partial = (seen.partial ?? "") + (chunk.choices[0].delta.content ?? "");
});

const endless = await ask({ messages: [{ role: "user", content: "Never end" }], stream: true });
for await (const chunk of endless) if (chunk.choices[0].delta.content) break;

console.log(JSON.stringify(seen));
