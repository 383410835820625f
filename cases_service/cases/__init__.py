"""What is asked and answered: schemas, filters, pagination, timestamps, and the serialization of rows."""
