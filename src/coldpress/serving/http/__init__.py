"""OpenAI's protocol over HTTP: what requests look like, what is answered, and the server."""
