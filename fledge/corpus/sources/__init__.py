"""Where rows come from: files here, on the web or on the hub, and the documentation of the running Python."""
