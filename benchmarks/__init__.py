"""Programs that measure: speed against the conventional way, and survival of faults."""
