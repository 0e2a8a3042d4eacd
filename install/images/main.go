// Command images builds Hauberk's container images, and those of its demo and
// tests, without Docker and without a registry: static binaries on an empty
// base, written as archives that containerd, Docker and kind can load, or
// pushed to a registry.
//
// The same source, Go release and Debian packages give the same digests in any
// folder. It owns the images' content and names; what runs in which pod, and
// how, is for the charts and manifests.
//
//	go run ./install/images -out dist/images
//	go run ./install/images -push registry.example.com/mesh -version v0.1.0
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/term"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	var usage usageError
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(64)
	case err != nil:
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

type usageError struct{ error }

// settings are the command line.
type settings struct {
	out, push, version, arch, images, source string
	insecure                                 bool
}

func parse(args []string, stderr io.Writer) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("images", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&s.out, "out", "dist/images", "folder for the archives")
	flags.StringVar(&s.push, "push", "", "push to this registry, as host[:port][/path]")
	flags.BoolVar(&s.insecure, "insecure", false, "push over plain HTTP or with an unknown certificate")
	flags.StringVar(&s.version, "version", "dev", "version of the binaries and tag of the images")
	flags.StringVar(&s.arch, "arch", "amd64", "architecture: amd64 or arm64")
	flags.StringVar(&s.images, "images", "", "only these images, by name, with commas between")
	flags.StringVar(&s.source, "source", ".", "the checkout")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return s, err
		}
		return s, usageError{err}
	}
	if flags.NArg() > 0 {
		return s, usageError{fmt.Errorf("unexpected argument %q", flags.Arg(0))}
	}
	return s, s.validate()
}

// tagForm is what the OCI distribution specification allows as a tag.
var tagForm = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

func (s settings) validate() error {
	switch {
	case !tagForm.MatchString(s.version):
		return usageError{fmt.Errorf("-version %q cannot be an image's tag: letters, digits, '.', '_' and '-', at most 128", s.version)}
	case s.arch != "amd64" && s.arch != "arm64":
		return usageError{fmt.Errorf("-arch %q: it is amd64 or arm64", s.arch)}
	case s.out == "":
		return usageError{errors.New("-out wants a folder")}
	case s.insecure && s.push == "":
		return usageError{errors.New("-insecure says how to push, and there is no -push")}
	}
	return nil
}

func command(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	s, err := parse(args, stderr)
	if err != nil {
		return err
	}
	specs, err := choose(catalog(), s.images)
	if err != nil {
		return usageError{err}
	}
	root, err := filepath.Abs(s.source)
	if err != nil {
		return fmt.Errorf("find checkout: %w", err)
	}
	if s.out, err = filepath.Abs(s.out); err != nil {
		return fmt.Errorf("find output folder: %w", err)
	}
	userCache, err := os.UserCacheDir()
	if err != nil {
		return fmt.Errorf("find the user's cache folder: %w", err)
	}
	file, ok := stderr.(*os.File)
	step := progress(stderr, ok && term.IsTerminal(int(file.Fd())))
	b, err := newBuilder(ctx, specs, s, root, filepath.Join(userCache, "hauberk"), step)
	if err != nil {
		return err
	}
	results, images, err := b.build(ctx, s.push != "")
	if err != nil {
		return err
	}
	if s.push != "" {
		pushed, err := push(ctx, images, s.push, s.insecure, step)
		if err != nil {
			return err
		}
		results = append(results, pushed...)
	}
	return report(stdout, results)
}

func newBuilder(ctx context.Context, specs []spec, s settings, root, cache string, step func(string) func()) (builder, error) {
	revision, committed := checkout(ctx, root)
	created, err := timestamp(os.Getenv("SOURCE_DATE_EPOCH"), committed)
	if err != nil {
		return builder{}, err
	}
	return builder{
		specs: specs,
		compiler: compiler{
			root: root, arch: s.arch, version: s.version, commit: revision,
			binDir: filepath.Join(s.out, "bin-"+s.arch), cache: filepath.Join(cache, "binaries"),
		},
		debian:  debian{cache: filepath.Join(cache, "debian"), arch: s.arch},
		release: release{version: s.version, revision: revision, created: created, arch: s.arch},
		out:     s.out,
		step:    step,
	}, nil
}

// checkout tells the commit of a folder, with -dirty if tracked files differ,
// and the commit's time; nothing if it is no git checkout.
func checkout(ctx context.Context, root string) (revision string, committed time.Time) {
	git := func(args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, "git", append([]string{"-C", root}, args...)...).Output()
		return strings.TrimSpace(string(out)), err
	}
	line, err := git("log", "-1", "--format=%H %ct")
	if err != nil {
		return "", time.Time{}
	}
	hash, seconds, _ := strings.Cut(line, " ")
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return "", time.Time{}
	}
	if changes, err := git("status", "--porcelain", "--untracked-files=no"); err != nil || changes != "" {
		hash += "-dirty"
	}
	return hash, time.Unix(unix, 0)
}

// timestamp is the time that all files and images bear.
func timestamp(epoch string, committed time.Time) (time.Time, error) {
	if epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil || seconds < 0 {
			return time.Time{}, usageError{fmt.Errorf("SOURCE_DATE_EPOCH=%q is not a number of seconds", epoch)}
		}
		return time.Unix(seconds, 0).UTC(), nil
	}
	if committed.IsZero() {
		return time.Unix(0, 0).UTC(), nil
	}
	return committed.UTC(), nil
}

func report(w io.Writer, results []result) error {
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, r := range results {
		state := "written"
		switch {
		case r.Path == "":
			state = "pushed"
		case r.Kept:
			state = "unchanged"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", r.Name, state, r.Path, r.Digest)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}
