// Swagger UI on the gateway's own description. No validator badge: it would ask another host.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#api", deepLinking: true, validatorUrl: null, persistAuthorization: false });
