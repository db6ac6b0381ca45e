"""What the tests share: real brokers on free ports."""
