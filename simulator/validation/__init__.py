"""May a policy serve? Its replay against the policy that serves, and an audit of its side effects."""
