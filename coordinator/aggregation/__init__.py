"""From a base and the accepted updates to the next global model; and which updates are accepted."""
