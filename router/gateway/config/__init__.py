"""Config text to the plan that a gateway runs: text, validated settings, plan."""
