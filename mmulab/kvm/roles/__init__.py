"""The role word: layouts, designs, derivations of a child, strategies for roots, history by kernel."""
