//go:build linux

package host

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// KeepDescriptors keeps what this process inherited, beyond its standard
// streams, from the daemons that it starts: a daemon that holds somebody's lock
// or pipe holds it for ever. Go's own descriptors are marked so already.
func KeepDescriptors() {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return // without /proc nothing below works, and that is told there
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}
