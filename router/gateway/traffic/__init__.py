"""The way of a request: client connection, HTTP exchange, driver, attempt, upstream connection, and back."""
