package engines

// Environ returns the environment of a worker. It has nothing of the host's, of which some would change what a guest sees or a worker does: a
// worker calls the debugger that XSBUG_HOST names, and its C library heeds TZ and GLIBC_TUNABLES.
func Environ() []string { return []string{"TZ=UTC0"} }
