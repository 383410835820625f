"""Cases, without I/O: schemas, filters, pagination, timestamps, bodies, and the serialization of rows."""
