"""Arguments and tables that several verbs have."""
