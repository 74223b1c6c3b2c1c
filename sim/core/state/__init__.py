"""What is true now of requests, instances and machines: plain data that keeps its accounts balanced."""
