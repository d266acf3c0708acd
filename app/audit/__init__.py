"""The public log as a service: what it says, who gives the order, how it gets out, how people check and restore it."""
