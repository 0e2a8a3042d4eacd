//go:build linux

package host

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func TestDaemonsInheritNoDescriptors(t *testing.T) {
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	inherited, err := syscall.Dup(int(file.Fd())) // without close-on-exec, as from a shell
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(inherited)
	open := func() string {
		out, err := exec.Command("ls", "-l", "/proc/self/fd").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	before := strings.Count(open(), os.DevNull)
	KeepDescriptors()
	// The child's standard input is one.
	if after := strings.Count(open(), os.DevNull); after != 1 || before < 2 {
		t.Errorf("a child has %d descriptors of %s, %d before: want 1, and more before", after, os.DevNull, before)
	}
}
