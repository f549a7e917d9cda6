"""Floor 10: experiments: cases, designs and policies compared, real boots, known bugs, timings."""
