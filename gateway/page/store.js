// What this browser remembers. A browser that keeps nothing (private windows, policies) still chats.

export function remember(name, value) {
  try {
    if (value) localStorage.setItem(`chat-grpc.${name}`, value);
    else localStorage.removeItem(`chat-grpc.${name}`);
  } catch {
    // Nothing can be kept here; a reload begins anew.
  }
}

export function recall(name) {
  try {
    return localStorage.getItem(`chat-grpc.${name}`) ?? "";
  } catch {
    return "";
  }
}
