package sandbox

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// init is where a container starts: libcontainer runs the calling program again, as "<program> init", and the C part
// of nsenter has put it into its namespaces by now. In any other process this does nothing.
func init() {
	if os.Getenv("_LIBCONTAINER_INITPIPE") == "" || len(os.Args) != 2 || os.Args[1] != "init" {
		// libcontainer logs what it does without; what fails is in its errors.
		logrus.SetOutput(io.Discard)
		return
	}
	if err := restrict(); err != nil {
		fail(err)
	}
	libcontainer.Init() // does not return
}

// restrict gives up what libcontainer has no setting for.
func restrict() error {
	// Die with the caller. If it has died already, libcontainer.Init finds its pipe closed and ends, up to the
	// moment when it executes the command; it keeps this setting until then.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("set the parent death signal: %w", err)
	}
	unix.Umask(0o022)

	// A signal that the caller ignores would stay ignored; one that is caught is back to its default after exec.
	signal.Notify(make(chan os.Signal, 1))

	// Programs whose output depends on addresses are at least the same twice. Some container runtimes do not
	// allow it; then there is none to rely on.
	const addrNoRandomize = 0x0040000
	_, _, _ = unix.RawSyscall(unix.SYS_PERSONALITY, addrNoRandomize, 0, 0)

	return refuseSyscalls()
}

// fail reports an error the way the C part does, so that the caller's Start returns it.
func fail(err error) {
	if fd, e := strconv.Atoi(os.Getenv("_LIBCONTAINER_LOGPIPE")); e == nil {
		fmt.Fprintf(os.NewFile(uintptr(fd), "log"), "{\"level\":\"fatal\",\"msg\":%q}\n", err.Error())
	}
	os.Exit(1)
}
