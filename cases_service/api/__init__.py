"""What HTTP sees: the routes, who may pass, parameters, ETags, problem documents, and the OpenAPI document."""
