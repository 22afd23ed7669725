"""Where people already work: callbacks for other trainers."""
