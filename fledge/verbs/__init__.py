"""What the command line does with results: answer, chat, show, verify, and the last lines of `fledge run`."""
