// Swagger UI over the document that stands beside this page.
SwaggerUIBundle({
  url: "openapi.json",
  domNode: document.getElementById("ui"),
  deepLinking: true,
  displayRequestDuration: true,
  // Would show the document to a service on another host.
  validatorUrl: null,
});
