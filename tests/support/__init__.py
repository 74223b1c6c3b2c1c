"""What the tests share: cases, scenarios, small files, policies; nothing here is a test."""
