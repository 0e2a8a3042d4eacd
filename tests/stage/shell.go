package stage

import (
	"context"
	"os"
	"path/filepath"
	"strings"
)

// Environment is what a user sets to type the commands that Shell runs, as
// shell text for the checkout's folder.
const Environment = `export KUBECONFIG=$PWD/.cluster/kubeconfig PATH=$PWD/bin:$PWD/.cluster/bin:$PATH`

// Shell runs a command line as a user would type it in the checkout's folder
// after Environment, so that what is shown is what is run.
func (s *Stage) Shell(ctx context.Context, line string) (Result, error) {
	path := filepath.Join(s.Root, "bin") + string(os.PathListSeparator) + filepath.Join(s.Root, ".cluster", "bin")
	return s.Run(ctx, "", "/bin/sh", "-c", "PATH="+quoted(path)+":$PATH\n"+line)
}

// quoted is text as one word for the shell.
func quoted(text string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_./:=,@%+", c)
	}
	if text != "" && strings.IndexFunc(text, func(c rune) bool { return !plain(c) }) < 0 {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
