"""Answers reach people: the server with OpenAI's interface, and the pages where one talks to a model and watches runs."""
