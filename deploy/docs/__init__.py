"""The documentation site: pages, the reference made from the code, and how links into the repository are followed."""
