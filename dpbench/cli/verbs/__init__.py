"""The verbs of the command line, by topic. Every module here is imported when dpbench starts, so none imports much itself."""
