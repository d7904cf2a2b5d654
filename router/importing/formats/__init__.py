"""One module a format. A module here that has a ``FORMAT`` can be imported; there is no list to extend."""
