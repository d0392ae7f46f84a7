"""What can follow `fledge`: the arguments and options of each verb, which hand over to `verbs/` or to a stage."""
