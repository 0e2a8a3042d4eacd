package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// versionPackage has the two words that a build sets.
const versionPackage = "github.com/hauberk-mesh/hauberk/internal/version"

// compiler turns main packages into static binaries that depend on the source,
// the Go release, the version and the commit, and on nothing else.
type compiler struct {
	root    string // the checkout
	arch    string
	version string
	commit  string
	binDir  string // for the main module: go build finds there what it made before
	cache   string // for other modules, whose sources change seldom
}

// check finds the binaries whose source is missing, all of them at once.
func (c compiler) check(specs []spec) error {
	var missing []error
	for _, s := range specs {
		for _, b := range s.Binaries {
			dir := filepath.Join(c.root, b.Module, b.Package)
			if sources, err := filepath.Glob(filepath.Join(dir, "*.go")); err != nil || len(sources) == 0 {
				missing = append(missing, fmt.Errorf("image %s needs the binary %s, but %s holds no Go source; leave the image out by -images", s.Name, b.Name, dir))
			}
		}
	}
	return errors.Join(missing...)
}

// compile builds what the images need and returns each binary's path by name.
// The main module is built by one go command, which shares its work.
func (c compiler) compile(ctx context.Context, specs []spec) (map[string]string, error) {
	paths := map[string]string{}
	var packages []string
	for _, s := range specs {
		for _, b := range s.Binaries {
			if _, done := paths[b.Name]; done {
				continue
			}
			if b.Module != "" {
				path, err := c.compileModule(ctx, b)
				if err != nil {
					return nil, err
				}
				paths[b.Name] = path
				continue
			}
			packages = append(packages, b.Package)
			paths[b.Name] = filepath.Join(c.binDir, filepath.Base(b.Package))
		}
	}
	if len(packages) == 0 {
		return paths, nil
	}
	if err := os.MkdirAll(c.binDir, 0o755); err != nil {
		return nil, fmt.Errorf("make folder for binaries: %w", err)
	}
	// No -buildid= among the linker's flags: with -trimpath the build ID is a
	// hash of the inputs, the same in every folder, and it is by the ID that
	// go build sees on the next run that there is nothing to link.
	flags := fmt.Sprintf("-s -w -X %s.Version=%s -X %s.Commit=%s", versionPackage, c.version, versionPackage, c.commit)
	return paths, c.goBuild(ctx, c.root, flags, c.binDir+string(filepath.Separator), packages...)
}

// compileModule builds a binary of another module, unless the cache has one
// made of the same sources by the same Go release.
func (c compiler) compileModule(ctx context.Context, b binary) (string, error) {
	dir := filepath.Join(c.root, b.Module)
	key, err := moduleKey(dir, c.arch)
	if err != nil {
		return "", fmt.Errorf("read sources of %s: %w", b.Name, err)
	}
	path := filepath.Join(c.cache, b.Name, key, b.Name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("make cache folder for %s: %w", b.Name, err)
	}
	// Under another name until it is whole, for a build may be interrupted.
	partial := fmt.Sprintf("%s.%d", path, os.Getpid())
	defer os.Remove(partial)
	if err := c.goBuild(ctx, dir, "-s -w", partial, b.Package); err != nil {
		return "", fmt.Errorf("build %s: %w", b.Name, err)
	}
	if err := os.Rename(partial, path); err != nil {
		return "", fmt.Errorf("keep %s in the cache: %w", b.Name, err)
	}
	return path, nil
}

func (c compiler) goBuild(ctx context.Context, dir, ldflags, out string, packages ...string) error {
	args := append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", out}, packages...)
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir = dir
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+c.arch, "GOFLAGS=", "GOAMD64=v1", "GOWORK=off", "GOEXPERIMENT=")
	var said bytes.Buffer
	command.Stdout, command.Stderr = &said, &said
	if err := command.Run(); err != nil {
		return fmt.Errorf("go build %s in %s: %w\n%s", strings.Join(packages, " "), dir, err, strings.TrimSpace(said.String()))
	}
	return nil
}

// moduleKey is a hash of a module's files and of what compiles them.
func moduleKey(dir, arch string) (string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		source := strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go")
		if entry.Type().IsRegular() && (source || name == "go.mod" || name == "go.sum") {
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	slices.Sort(files)
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), arch)
	for _, path := range files {
		content, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		relative, err := filepath.Rel(dir, path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %d\n%s", relative, len(content), content)
	}
	return hex.EncodeToString(sum.Sum(nil))[:20], nil
}

func fileHash(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
