package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// names are what the suites call their images. All of them are one image, built
// here.
var names = []string{
	"docker.io/mfenwick100/cyclonus-worker:latest", // cyclonus v0.5.6
	"registry.k8s.io/e2e-test-images/agnhost:2.45", // network-policy-api v0.2.0
}

// program is one of the image's binaries.
type program struct {
	module string // folder below tests/conformance with its go.mod; "" is the main module
	pkg    string
	path   string // in the image
}

var programs = []program{
	{"agnhost", "k8s.io/kubernetes/test/images/agnhost", "agnhost.real"},
	{"", "./tests/conformance/front", "agnhost"},
	{"", "./tests/conformance/worker", "worker"},
	{"", "./tests/conformance/shell", "bin/bash"},
}

// cacheFolder is where what is built is kept.
func cacheFolder() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("folder for built files (set XDG_CACHE_HOME): %w", err)
	}
	dir := filepath.Join(base, "hauberk", "conformance")
	return dir, os.MkdirAll(dir, 0o755)
}

// build builds a Go package of a module into a file, and does nothing when the
// file is current.
func build(ctx context.Context, dir, pkg, out string, args ...string) error {
	args = append(append([]string{}, args...), "-trimpath", "-buildvcs=false", "-o", out, pkg)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s in %s: %w\n%s", pkg, dir, err, output)
	}
	return nil
}

// buildImages writes the archive with the suites' images and returns its path.
func (r *run) buildImages(ctx context.Context) (string, error) {
	cache, err := cacheFolder()
	if err != nil {
		return "", err
	}
	files := map[string]string{}
	for _, p := range programs {
		dir := r.stage.Root
		if p.module != "" {
			dir = r.folder(p.module)
		}
		file := filepath.Join(cache, filepath.Base(p.path))
		if err := build(ctx, dir, p.pkg, file, "build", "-ldflags", "-s -w"); err != nil {
			return "", err
		}
		files[p.path] = file
	}
	layer, err := layerOf(files)
	if err != nil {
		return "", fmt.Errorf("layer of the suites' image: %w", err)
	}
	image, err := imageOf(layer)
	if err != nil {
		return "", fmt.Errorf("the suites' image: %w", err)
	}
	tags := map[name.Tag]v1.Image{}
	for _, n := range names {
		tag, err := name.NewTag(n)
		if err != nil {
			return "", fmt.Errorf("name of an image: %w", err)
		}
		tags[tag] = image
	}
	archive := filepath.Join(cache, "images.tar")
	if err := tarball.MultiWriteToFile(archive, tags); err != nil {
		return "", fmt.Errorf("write %s: %w", archive, err)
	}
	return archive, nil
}

func layerOf(files map[string]string) (v1.Layer, error) {
	var content bytes.Buffer
	w := tar.NewWriter(&content)
	for _, dir := range []string{"bin/", "tmp/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o1777, ModTime: time.Unix(0, 0)}); err != nil {
			return nil, err
		}
	}
	for _, p := range programs {
		binary, err := os.ReadFile(files[p.path])
		if err != nil {
			return nil, err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: p.path, Mode: 0o755, Size: int64(len(binary)), ModTime: time.Unix(0, 0)}); err != nil {
			return nil, err
		}
		if _, err := w.Write(binary); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content.Bytes())), nil })
}

func imageOf(layer v1.Layer) (v1.Image, error) {
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config = v1.Config{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}}
	return mutate.ConfigFile(image, file)
}

// loadImages loads the archive into the cluster unless it has it already.
func (r *run) loadImages(ctx context.Context, archive string) error {
	sum := sha256.New()
	for _, path := range []string{archive, r.stage.Kubeconfig()} { // a new cluster has a new kubeconfig
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("load the suites' images: %w", err)
		}
		_, err = io.Copy(sum, f)
		_ = f.Close() // read only
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
	}
	now := hex.EncodeToString(sum.Sum(nil))
	stamp := filepath.Join(r.stage.Root, ".cluster", "loaded-conformance")
	if had, err := os.ReadFile(stamp); err == nil && string(had) == now {
		return nil
	}
	if err := r.command(ctx, r.stage.Root, filepath.Join(r.stage.Root, ".cluster", "bin", "cluster"), "load", archive); err != nil {
		return err
	}
	return os.WriteFile(stamp, []byte(now), 0o644)
}
