"""`fledge doctor`: look at the machine -> facts -> checks, which are pure -> findings -> lines, or JSON."""
