"""Host memory of a node: cached weights, the KV of offloaded layers, and saved KV, under one capacity.

Weights are cached least recently used first out; an entry that an instance needs (layers outside the GPU, an engine
that keeps a host copy) is pinned. Asking for room evicts unpinned weights only. Loading and serving call it.
"""

from __future__ import annotations

WeightsKey = tuple[str, str]


class HostMemory:
    """All sizes in bytes. `cache_limit` bounds the cached weights below the capacity."""

    def __init__(self, capacity: int, cache_limit: int | None) -> None:
        self.capacity = capacity
        self.cache_limit = capacity if cache_limit is None else min(cache_limit, capacity)
        self.cached: dict[WeightsKey, int] = {}  # least recently used first
        self.pins: dict[WeightsKey, int] = {}
        self.cached_bytes = 0
        self.pinned_bytes = 0
        self.instance_kv_bytes = 0
        self.saved_kv_bytes = 0

    @property
    def used(self) -> int:
        return self.cached_bytes + self.instance_kv_bytes + self.saved_kv_bytes

    @property
    def free(self) -> int:
        return self.capacity - self.used

    @property
    def available(self) -> int:
        """Free bytes and those of weights that may be evicted."""
        return self.capacity - self.instance_kv_bytes - self.saved_kv_bytes - self.pinned_bytes

    def room_for(self, key: WeightsKey | None, weight_bytes: int, kv_bytes: int) -> int:
        """How many bytes are missing to pin these weights (None: none) and hold this KV; 0 or less: it fits."""
        if key is None or self.pins.get(key):
            return kv_bytes - self.available
        # Weights that are cached but not pinned may be evicted, so their bytes are among the available ones too.
        return max(weight_bytes + kv_bytes - self.available, self.pinned_bytes + weight_bytes - self.cache_limit)

    def touch(self, key: WeightsKey) -> bool:
        """Mark as used now; False when the weights are not cached."""
        if key not in self.cached:
            return False
        self.cached[key] = self.cached.pop(key)
        return True

    def cache(self, key: WeightsKey, size: int) -> bool:
        """Cache weights, evicting others as needed; False when there is no room for them."""
        if self.touch(key):
            return True
        spare = min(self.free, self.cache_limit - self.cached_bytes)
        victims = [other for other in self.cached if not self.pins.get(other)]
        if spare + sum(self.cached[other] for other in victims) < size:
            return False
        for other in victims:
            if spare >= size:
                break
            spare += self.cached[other]
            self._evict(other)
        self.cached[key] = size
        self.cached_bytes += size
        return True

    def _evict(self, key: WeightsKey) -> None:
        self.cached_bytes -= self.cached.pop(key)

    def pin(self, key: WeightsKey) -> None:
        assert key in self.cached, key
        if key not in self.pins:
            self.pinned_bytes += self.cached[key]
        self.pins[key] = self.pins.get(key, 0) + 1

    def unpin(self, key: WeightsKey) -> None:
        self.pins[key] -= 1
        if not self.pins[key]:
            del self.pins[key]
            self.pinned_bytes -= self.cached[key]

    def _make_room(self, size: int) -> bool:
        if self.free >= size:
            return True
        if self.available < size:
            return False
        for key in list(self.cached):
            if self.free >= size:
                break
            if not self.pins.get(key):
                self._evict(key)
        return True

    def take_instance_kv(self, size: int) -> bool:
        """Hold (or with a negative size give back) the KV of offloaded layers; False when there is no room."""
        if size > 0 and not self._make_room(size):
            return False
        self.instance_kv_bytes += size
        return True

    def take_saved_kv(self, size: int) -> bool:
        """Hold (or with a negative size give back) saved KV; False when there is no room."""
        if size > 0 and not self._make_room(size):
            return False
        self.saved_kv_bytes += size
        return True

    def lose(self) -> None:
        """The host is gone, and all that was cached there; who held something else has given it back before."""
        assert not self.pins, self.pins
        assert self.instance_kv_bytes == self.saved_kv_bytes == 0, (self.instance_kv_bytes, self.saved_kv_bytes)
        self.cached = {}
        self.cached_bytes = 0

    def check(self) -> None:
        """Assert the account (law 2)."""
        assert self.cached_bytes == sum(self.cached.values())
        assert self.instance_kv_bytes >= 0, self.instance_kv_bytes
        assert self.saved_kv_bytes >= 0, self.saved_kv_bytes
        assert self.used <= self.capacity, (self.used, self.capacity)
        assert self.cached_bytes <= self.cache_limit, (self.cached_bytes, self.cache_limit)
        assert all(key in self.cached for key in self.pins), self.pins
        assert self.pinned_bytes == sum(self.cached[key] for key in self.pins), (self.pinned_bytes, self.pins)
