"""Parts that several policies share: costs, prices, keep-alive timers, eviction, queues."""
