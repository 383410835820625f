"use strict";

// Shows the document, opens its first request, and in a demo fills in what that needs.
const { document: url, apiToken, visitorJwt } = document.getElementById("api").dataset;

const ui = SwaggerUIBundle({
  url,
  dom_id: "#api",
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  // By default a badge is asked for at another site.
  validatorUrl: null,
  onComplete() {
    if (apiToken) {
      ui.preauthorizeApiKey("apiToken", apiToken);
      ui.preauthorizeApiKey("visitorJwt", visitorJwt);
    }
    if (!location.hash) {
      ui.layoutActions.show(["operations", "Cases", "list_cases"], true);
    }
  },
});
