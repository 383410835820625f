"""The OpenAPI document: shared components, the description of each route, and the document made of them."""
