"""HTTP: the routes, authentication, rate limits, parameters, ETags, problem documents, and the OpenAPI document."""
