package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// layoutVersion is part of each image's key: raise it when this package lays
// an image out differently from the same inputs.
const layoutVersion = "1"

// combinedName is the archive of all images of a run.
const combinedName = "hauberk-images"

// builder makes images and their archives.
type builder struct {
	specs    []spec
	compiler compiler
	debian   debian
	release  release
	out      string
	step     func(what string) (done func()) // progress
}

// result is an archive that is there now.
type result struct {
	Name   string // full name of the image
	Path   string
	Digest string
	Kept   bool // nothing had changed
}

// receipt lies beside an archive and says of what it was made.
type receipt struct {
	Key    string
	Digest string
	Size   int64
}

// layers are the parts that several images share.
type layers struct {
	base, tools part
}

// build makes every archive that is not there already. If assemble, it gives
// the images too, for pushing; an unchanged image comes from its inputs again,
// which gives the same digest.
func (b builder) build(ctx context.Context, assemble bool) ([]result, []named, error) {
	if err := b.compiler.check(b.specs); err != nil {
		return nil, nil, err
	}
	for _, dir := range []string{b.out, b.debian.cache} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, nil, fmt.Errorf("make folder: %w", err)
		}
	}
	done := b.step("compile binaries")
	paths, err := b.compiler.compile(ctx, b.specs)
	done()
	if err != nil {
		return nil, nil, err
	}
	done = b.step("fetch files from Debian packages")
	base, tools, from, err := b.packages(ctx)
	done()
	if err != nil {
		return nil, nil, err
	}
	keys, changed, err := b.keys(paths, from)
	if err != nil {
		return nil, nil, err
	}
	combined := filepath.Join(b.out, combinedName+".tar")
	if !changed && !assemble {
		return b.receipts(combined)
	}
	images, err := b.assemble(base, tools, paths)
	if err != nil {
		return nil, nil, err
	}
	results, err := b.write(images, keys, combined)
	return results, images, err
}

// packages gives the content that comes from Debian, and its versions.
func (b builder) packages(ctx context.Context) (base, tools rootfs, from string, err error) {
	base, packages, err := certificates(ctx, b.debian)
	if err != nil {
		return nil, nil, "", err
	}
	for _, s := range b.specs {
		if s.NetTools && tools == nil {
			var more []pkg
			if tools, more, err = netTools(ctx, b.debian); err != nil {
				return nil, nil, "", err
			}
			packages = append(packages, more...)
		}
	}
	var list strings.Builder
	for _, p := range packages {
		fmt.Fprintln(&list, p.Name, p.Version)
	}
	for name, n := range users() {
		base[name] = n
	}
	return base, tools, list.String(), nil
}

// keys hashes each image's inputs and tells whether any archive is not of them.
func (b builder) keys(paths map[string]string, packages string) (map[string]string, bool, error) {
	keys, all := map[string]string{}, ""
	changed := false
	for _, s := range b.specs {
		sum := sha256.New()
		described, err := json.Marshal(s)
		if err != nil {
			return nil, false, fmt.Errorf("describe image %s: %w", s.Name, err)
		}
		fmt.Fprintf(sum, "%s\n%s\n%s\n%v\n", layoutVersion, described, packages, b.release)
		for _, program := range s.Binaries {
			hash, err := fileHash(paths[program.Name])
			if err != nil {
				return nil, false, fmt.Errorf("read binary %s: %w", program.Name, err)
			}
			fmt.Fprintln(sum, program.Name, hash)
		}
		keys[s.Name] = hex.EncodeToString(sum.Sum(nil))
		all += keys[s.Name]
		if _, ok := b.kept(b.path(s), keys[s.Name]); !ok {
			changed = true
		}
	}
	sum := sha256.Sum256([]byte(all))
	keys[combinedName] = hex.EncodeToString(sum[:])
	if _, ok := b.kept(filepath.Join(b.out, combinedName+".tar"), keys[combinedName]); !ok {
		changed = true
	}
	return keys, changed, nil
}

func (b builder) path(s spec) string { return filepath.Join(b.out, s.Name+".tar") }

func (b builder) name(s spec) string { return registryHost + "/" + s.Name + ":" + b.release.version }

func receiptPath(archive string) string { return strings.TrimSuffix(archive, ".tar") + ".json" }

// kept reads an archive's receipt and tells whether it is of the given key and
// the archive still has the size it had.
func (b builder) kept(archive, key string) (receipt, bool) {
	var r receipt
	raw, err := os.ReadFile(receiptPath(archive))
	if err != nil || json.Unmarshal(raw, &r) != nil {
		return r, false
	}
	info, err := os.Stat(archive)
	return r, err == nil && info.Size() == r.Size && r.Key == key
}

// receipts lists what is there when nothing had to be done.
func (b builder) receipts(combined string) ([]result, []named, error) {
	var results []result
	for _, s := range b.specs {
		raw, err := os.ReadFile(receiptPath(b.path(s)))
		if err != nil {
			return nil, nil, fmt.Errorf("read receipt of %s: %w", s.Name, err)
		}
		var r receipt
		if err := json.Unmarshal(raw, &r); err != nil {
			return nil, nil, fmt.Errorf("read receipt of %s: %w", s.Name, err)
		}
		results = append(results, result{Name: b.name(s), Path: b.path(s), Digest: r.Digest, Kept: true})
	}
	return append(results, result{Name: "all of these", Path: combined, Kept: true}), nil, nil
}

func (b builder) assemble(base, tools rootfs, paths map[string]string) ([]named, error) {
	shared, err := b.shared(base, tools)
	if err != nil {
		return nil, err
	}
	var images []named
	for _, s := range b.specs {
		done := b.step("pack " + s.Name)
		image, err := b.assembleOne(s, shared, paths)
		done()
		if err != nil {
			return nil, fmt.Errorf("pack image %s: %w", s.Name, err)
		}
		images = append(images, named{b.name(s), image})
	}
	return images, nil
}

func (b builder) shared(base, tools rootfs) (layers, error) {
	defer b.step("pack shared layers")()
	var shared layers
	layer, err := b.release.layer(base)
	if err != nil {
		return layers{}, fmt.Errorf("pack base layer: %w", err)
	}
	shared.base = part{layer, "users and certificates"}
	if tools == nil {
		return shared, nil
	}
	if layer, err = b.release.layer(tools); err != nil {
		return layers{}, fmt.Errorf("pack nft and iptables: %w", err)
	}
	shared.tools = part{layer, "nft and iptables of Debian"}
	return shared, nil
}

func (b builder) assembleOne(s spec, shared layers, paths map[string]string) (v1.Image, error) {
	parts := []part{shared.base}
	if s.NetTools {
		parts = append(parts, shared.tools)
	}
	own, err := b.release.layer(programs(s, paths))
	if err != nil {
		return nil, err
	}
	return b.release.image(s, append(parts, part{own, "programs of " + s.Title}))
}

// write writes the archives whose key is new, and the one of all images.
func (b builder) write(images []named, keys map[string]string, combined string) ([]result, error) {
	done := b.step("write archives")
	defer done()
	var results []result
	for i, s := range b.specs {
		digest, err := images[i].image.Digest()
		if err != nil {
			return nil, fmt.Errorf("digest of %s: %w", s.Name, err)
		}
		kept, err := b.writeOne(b.path(s), images[i:i+1], keys[s.Name], digest.String())
		if err != nil {
			return nil, err
		}
		results = append(results, result{Name: images[i].name, Path: b.path(s), Digest: digest.String(), Kept: kept})
	}
	kept, err := b.writeOne(combined, images, keys[combinedName], "")
	if err != nil {
		return nil, err
	}
	return append(results, result{Name: "all of these", Path: combined, Kept: kept}), nil
}

func (b builder) writeOne(path string, images []named, key, digest string) (kept bool, err error) {
	if _, ok := b.kept(path, key); ok {
		return true, nil
	}
	// First the receipt goes, so that none ever speaks of another archive.
	if err := os.Remove(receiptPath(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("remove old receipt: %w", err)
	}
	if err := writeArchive(path, images, b.release.created); err != nil {
		return false, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	raw, err := json.Marshal(receipt{Key: key, Digest: digest, Size: info.Size()})
	if err != nil {
		return false, err
	}
	if err := os.WriteFile(receiptPath(path), raw, 0o644); err != nil {
		return false, fmt.Errorf("write receipt: %w", err)
	}
	return false, nil
}
