// Command shell stands for /bin/bash in an image that has no shell: it runs the
// plain command lines of the conformance suites' manifests, which are words
// between spaces and nothing more. It owns no quoting, variables or pipes, and
// refuses lines that would need them.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

func main() {
	words, err := parse(os.Args[1:])
	if err == nil {
		err = fmt.Errorf("run %s: %w", words[0], syscall.Exec(words[0], words, os.Environ()))
	}
	fmt.Fprintln(os.Stderr, "shell:", err)
	os.Exit(127)
}

// parse is the words of "-c line".
func parse(args []string) ([]string, error) {
	if len(args) != 2 || args[0] != "-c" {
		return nil, fmt.Errorf("arguments %q are not -c and a command line", args)
	}
	if i := strings.IndexAny(args[1], "'\"`$\\;&|<>()*?[]{}~#!\n"); i >= 0 {
		return nil, fmt.Errorf("%q in the command line %q needs a true shell", args[1][i], args[1])
	}
	words := strings.Fields(args[1])
	if len(words) == 0 {
		return nil, errors.New("the command line is empty")
	}
	return words, nil
}
