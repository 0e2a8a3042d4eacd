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
	if after := strings.Count(open(), os.DevNull); after != before-1 {
		t.Errorf("a child has %d descriptors of %s after, %d before: want one less", after, os.DevNull, before)
	}
}
