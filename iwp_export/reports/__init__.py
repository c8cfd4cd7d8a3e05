"""Reports of validations and benchmarks: the document, its page, and two of them beside each other."""
