"""What clipfake measures of itself: throughput, latency, training time, as tables and JSON, beside a peer."""
