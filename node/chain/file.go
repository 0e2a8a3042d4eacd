package chain

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// errChanged says that somebody else wrote the file meanwhile: look again.
var errChanged = errors.New("the file was changed by somebody else meanwhile")

// temporary files begin with this, which no runtime loads.
const temporary = ".hauberk-"

// replace puts text in place of old at path, atomically and without losing
// what another program writes at the same time: the files change places, and
// if what came out is not old they change back. Of a symbolic link the target is
// replaced.
func replace(path string, old, text []byte) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	tmp, err := stage(filepath.Dir(path), text, info.Mode().Perm())
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, old) {
		return errors.Join(errChanged, err)
	}
	exchange := func() error {
		return unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	}
	switch err := exchange(); {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		// A filesystem that can't exchange.
		if err := os.Rename(tmp, path); err != nil {
			return fmt.Errorf("replace %s: %w", path, err)
		}
		return syncDir(path)
	case errors.Is(err, fs.ErrNotExist):
		return errChanged
	case err != nil:
		return fmt.Errorf("replace %s: %w", path, err)
	}
	if out, err := os.ReadFile(tmp); err != nil || !bytes.Equal(out, old) {
		if err := exchange(); err != nil {
			return fmt.Errorf("put back %s, which was changed by somebody else meanwhile: %w", path, err)
		}
		return errors.Join(errChanged, err)
	}
	return syncDir(path)
}

// write puts text at path, whether there is a file or not.
func write(path string, text []byte, mode fs.FileMode) error {
	tmp, err := stage(filepath.Dir(path), text, mode)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(path)
}

// stage writes a temporary file beside the one to come.
func stage(dir string, text []byte, mode fs.FileMode) (path string, err error) {
	f, err := os.CreateTemp(dir, temporary+"*.tmp")
	if err != nil {
		return "", fmt.Errorf("write a temporary file: %w", err)
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("write a temporary file: %w", err)
	}
	return f.Name(), nil
}

// syncDir makes a rename last over a power cut.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
