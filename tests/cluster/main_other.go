//go:build !linux

package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	fmt.Fprintf(os.Stderr, "cluster: the test cluster needs Linux namespaces, not %s: run it in a Linux virtual machine (Debian or Ubuntu)\n", runtime.GOOS)
	os.Exit(1)
}
