"""What people use a Korean GPT for: classify, summarise, ask; and the filter and report of what it writes."""
