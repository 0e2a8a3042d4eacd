package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// debian fetches packages of the machine's own distribution, Debian or Ubuntu,
// and keeps them unpacked in the cache by version. Nothing is installed.
type debian struct {
	cache string
	arch  string
}

// pkg is one package, unpacked at Root.
type pkg struct {
	Name, Version string
	Root          string
	depends       []string
}

// unpack fetches packages, with the libraries that they depend on if closure.
func (d debian) unpack(ctx context.Context, closure bool, wanted ...string) ([]pkg, error) {
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("the images take files from Debian packages, and this machine has no %s: build them on Debian or Ubuntu", tool)
		}
	}
	packages, err := d.resolve(ctx, closure, wanted)
	if err != nil {
		// The lists may be missing (a new container) or tell of a version that
		// is gone; root may renew them.
		if os.Getuid() != 0 {
			return nil, fmt.Errorf("%w; `sudo apt-get update` may mend it", err)
		}
		if _, err := run(ctx, d.cache, "apt-get", "update", "-qq"); err != nil {
			return nil, fmt.Errorf("renew package lists: %w", err)
		}
		if packages, err = d.resolve(ctx, closure, wanted); err != nil {
			return nil, err
		}
	}
	for i := range packages {
		if err := d.fetch(ctx, &packages[i]); err != nil {
			return nil, fmt.Errorf("fetch Debian package %s %s: %w", packages[i].Name, packages[i].Version, err)
		}
	}
	return packages, nil
}

// resolve finds the versions on offer, sorted by name.
func (d debian) resolve(ctx context.Context, closure bool, wanted []string) ([]pkg, error) {
	found := map[string]pkg{}
	for next := wanted; len(next) > 0; {
		offered, err := d.show(ctx, next)
		if err != nil {
			return nil, err
		}
		for _, name := range next {
			p, ok := offered[name]
			// A dependency without a package of its own is a virtual one.
			if !ok && slices.Contains(wanted, name) {
				return nil, fmt.Errorf("apt offers no package %s for %s", name, d.arch)
			}
			found[name] = p
		}
		next = nil
		for _, p := range offered {
			for _, name := range p.depends {
				_, known := found[name]
				if closure && !known && !slices.Contains(next, name) && (strings.HasPrefix(name, "lib") || name == "netbase") {
					next = append(next, name)
				}
			}
		}
	}
	var packages []pkg
	for _, p := range found {
		if p.Name != "" {
			packages = append(packages, p)
		}
	}
	slices.SortFunc(packages, func(a, b pkg) int { return strings.Compare(a.Name, b.Name) })
	return packages, nil
}

// show asks apt for the records of packages.
func (d debian) show(ctx context.Context, names []string) (map[string]pkg, error) {
	args := []string{"show", "--no-all-versions"}
	for _, name := range names {
		args = append(args, name+":"+d.arch)
	}
	// apt-cache fails as a whole if one name is unknown, and still shows the others.
	out, err := run(ctx, d.cache, "apt-cache", args...)
	offered := parseRecords(out)
	if err != nil && len(offered) == 0 {
		return nil, fmt.Errorf("ask apt for %s: %w", strings.Join(names, " "), err)
	}
	return offered, nil
}

// parseRecords reads what apt-cache shows: fields, a blank line after each package.
func parseRecords(text []byte) map[string]pkg {
	found := map[string]pkg{}
	var p pkg
	keep := func() {
		if p.Name != "" && p.Version != "" {
			found[p.Name] = p
		}
		p = pkg{}
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, isField := strings.Cut(lines.Text(), ": ")
		switch {
		case lines.Text() == "":
			keep()
		case !isField:
		case name == "Package":
			p.Name = value
		case name == "Version":
			p.Version = value
		case name == "Depends" || name == "Pre-Depends":
			for dependency := range strings.SplitSeq(value, ",") {
				first, _, _ := strings.Cut(dependency, "|")
				first, _, _ = strings.Cut(strings.TrimSpace(first), " ")
				first, _, _ = strings.Cut(first, ":")
				p.depends = append(p.depends, first)
			}
		}
	}
	keep()
	return found
}

// fetch downloads and unpacks a package that the cache does not hold. apt
// checks what it downloads against the signed index.
func (d debian) fetch(ctx context.Context, p *pkg) error {
	p.Root = filepath.Join(d.cache, fmt.Sprintf("%s_%s_%s", p.Name, strings.ReplaceAll(p.Version, ":", "%3a"), d.arch))
	if _, err := os.Stat(p.Root); err == nil {
		return nil
	}
	work, err := os.MkdirTemp(d.cache, "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if _, err := run(ctx, work, "apt-get", "download", "-qq", p.Name+":"+d.arch+"="+p.Version); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(archives) != 1 {
		return fmt.Errorf("apt-get download left %d archives, want 1", len(archives))
	}
	unpacked := filepath.Join(work, "root")
	if _, err := run(ctx, work, "dpkg-deb", "--extract", archives[0], unpacked); err != nil {
		return err
	}
	err = os.Rename(unpacked, p.Root)
	if _, there := os.Stat(p.Root); there == nil {
		return nil // perhaps another build's, which is the same
	}
	return err
}

// run gives a command's output; its error holds what the command said.
func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, name, args...)
	command.Dir = dir
	command.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	out, err := command.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out, fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(exit.Stderr)))
	}
	return out, err
}
