"""What operators watch, in Prometheus' words: the fleet by the API, a coordinator by itself, and a board of both."""
