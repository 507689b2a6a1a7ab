"""Methods for carrying prompts from task to task: one file each."""
