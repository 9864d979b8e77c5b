"""The demo: questions with known answers, a rule that judges them, and a tiny model trained from scratch. No download."""
