// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package singleflight_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/singleflight"
)

// An HTTP handler serves the pages of a slow backend from a cache. A hundred clients
// come, and the backend gets one request. fn looks into the cache again, since another
// call may have filled it. It sets a timeout, since its context has no deadline. And it
// recovers from its panics, since one would crash the process if all clients had left.
func Example_handler() {
	var group singleflight.Group
	var cache sync.Map // from path to page; a real cache has limits
	ask := func(_ context.Context, path string) (any, error) { fmt.Println("request:", path); return "news", nil }
	get := func(ctx context.Context, path string) (any, error) {
		if page, ok := cache.Load(path); ok {
			return page, nil
		}
		page, err, _ := group.DoContext(ctx, path, func(ctx context.Context) (page any, err error) {
			defer func() {
				if r := recover(); r != nil {
					err = fmt.Errorf("panic: %v\n\n%s", r, debug.Stack())
				}
			}()
			if page, ok := cache.Load(path); ok {
				return page, nil
			}
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			page, err = ask(ctx, path)
			if err == nil {
				cache.Store(path, page)
			}
			return page, err
		})
		return page, err
	}
	handler := func(w http.ResponseWriter, r *http.Request) {
		page, err := get(r.Context(), r.URL.Path)
		if err != nil {
			http.Error(w, "cannot get the page", http.StatusBadGateway)
			return
		}
		fmt.Fprint(w, page)
	}

	var clients sync.WaitGroup
	for range 100 {
		clients.Go(func() { handler(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/news", nil)) })
	}
	clients.Wait()
	// Output: request: /news
}

// The key contains everything that the result depends on, here the tenant and the
// file. Quoting the parts keeps them apart: joined by + alone, these two keys would be
// the same, and one tenant would get the file of the other. Strings are quoted with %q.
// Integers are not, since many of them look the same under %q: use %d.
func ExampleGroup_compoundKey() {
	var group singleflight.Group
	started := make(chan struct{})
	read := func(tenant, file string, revision int) <-chan singleflight.Result {
		key := fmt.Sprintf("%q %q %d", tenant, file, revision)
		return group.DoChan(key, func() (any, error) {
			<-started
			return fmt.Sprintf("revision %d of file %s of tenant %s", revision, file, tenant), nil
		})
	}

	one, other := read("acme", "2/plan", 7), read("acme2", "/plan", 7)
	close(started)
	fmt.Println((<-one).Val)
	fmt.Println((<-other).Val)
	// Output:
	// revision 7 of file 2/plan of tenant acme
	// revision 7 of file /plan of tenant acme2
}

// A caller misses the cache, but asks only after the call that fills it has ended. So
// it starts a call of its own. fn looks into the cache again, and does not load the
// value a second time.
func ExampleGroup_Do() {
	var group singleflight.Group
	var cache sync.Map // from id to name
	loads := 0
	name := func(id string, missed func()) (string, error) {
		if name, ok := cache.Load(id); ok {
			return name.(string), nil
		}
		missed()
		v, err, _ := group.Do(id, func() (any, error) {
			if name, ok := cache.Load(id); ok {
				return name, nil
			}
			loads++
			cache.Store(id, "Ann")
			return "Ann", nil
		})
		if err != nil {
			return "", err // v may be nil: do not assert its type
		}
		return v.(string), nil
	}

	another := func() { name("42", func() {}) } // comes and goes in the gap
	fmt.Println(name("42", another))
	fmt.Println("loads:", loads)
	// Output:
	// Ann <nil>
	// loads: 1
}

// A caller stops waiting when its own context is done, but the work goes on and is
// finished. So fn makes a context of its own, with the values of the caller's and a
// timeout. It recovers from its panics, since one would crash the process.
func ExampleGroup_DoChan() {
	var group singleflight.Group
	answer, stored := make(chan string), make(chan string, 1)
	load := func(context.Context) (any, error) {
		report := <-answer // takes long
		stored <- report
		return report, nil
	}
	report := func(ctx context.Context) (any, error) {
		results := group.DoChan("report", func() (v any, err error) {
			defer func() {
				if r := recover(); r != nil {
					err = fmt.Errorf("panic: %v\n\n%s", r, debug.Stack())
				}
			}()
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			return load(ctx)
		})
		select {
		case r := <-results:
			return r.Val, r.Err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}

	ctx, hangUp := context.WithCancel(context.Background())
	hangUp()
	_, err := report(ctx)
	fmt.Println("caller:", err)
	answer <- "the report"
	fmt.Println("stored:", <-stored)
	// Output:
	// caller: context canceled
	// stored: the report
}

// The caller that started the call hangs up. The other caller does not notice, since
// fn uses the context that it is given and not that of the first caller. When all
// callers have left, fn's context is canceled.
func ExampleGroup_DoContext() {
	var group singleflight.Group
	answer, stopped := make(chan string), make(chan error, 1)
	load := func(ctx context.Context) (any, error) {
		select {
		case report := <-answer:
			return report, nil
		case <-ctx.Done():
			stopped <- ctx.Err()
			return nil, ctx.Err()
		}
	}

	request, hangUp := context.WithCancel(context.Background())
	var other <-chan singleflight.Result
	_, err, _ := group.DoContext(request, "report", func(ctx context.Context) (any, error) {
		other = group.DoChan("report", nil) // another caller, whose fn is ignored
		hangUp()
		return load(ctx)
	})
	fmt.Println("first caller:", err)
	answer <- "the report"
	fmt.Println("other caller:", (<-other).Val)

	request, hangUp = context.WithCancel(context.Background())
	_, err, _ = group.DoContext(request, "report", func(ctx context.Context) (any, error) {
		hangUp()
		return load(ctx)
	})
	fmt.Println("only caller:", err)
	fmt.Println("fn:", <-stopped)
	// Output:
	// first caller: context canceled
	// other caller: the report
	// only caller: context canceled
	// fn: context canceled
}

// A cache is invalidated while a value is being loaded. Forget makes later callers
// load the value again. But the forgotten fn still runs, and it would store a value
// that is out of date. So fn stores nothing if the revision has changed since it began.
func ExampleGroup_Forget() {
	var group singleflight.Group
	var mu sync.Mutex // guards cache and revision
	cache, revision := make(map[string]int), 0
	get := func(key string, load func() (int, error)) (int, error) {
		v, err, _ := singleflight.Do(&group, key, func() (int, error) {
			mu.Lock()
			v, ok := cache[key]
			before := revision
			mu.Unlock()
			if ok {
				return v, nil
			}
			v, err := load()
			mu.Lock()
			defer mu.Unlock()
			if err == nil && revision == before {
				cache[key] = v
			}
			return v, err
		})
		return v, err
	}
	invalidate := func(key string) {
		mu.Lock()
		defer mu.Unlock()
		revision++
		delete(cache, key)
		group.Forget(key)
	}

	reading, answer, ended := make(chan bool), make(chan int), make(chan bool)
	oldPrice := func() (int, error) { close(reading); return <-answer, nil }
	newPrice := func() (int, error) { return 12, nil }
	go func() { get("price", oldPrice); close(ended) }()
	<-reading
	invalidate("price") // after it has changed
	fmt.Println(get("price", newPrice))
	answer <- 10
	<-ended
	fmt.Println(get("price", newPrice))
	// Output:
	// 12 <nil>
	// 12 <nil>
}

// This fn heeds no context, so nothing ends it when it is stuck. A timer forgets the
// key, and the next caller starts a new call. If the timer fires when fn has just
// ended, it can forget the next call instead, and then one more call starts.
func ExampleGroup_Forget_timer() {
	var group singleflight.Group
	forgotten := make(chan bool, 1)
	report := func(read func() string) <-chan singleflight.Result {
		return group.DoChan("report", func() (any, error) {
			timer := time.AfterFunc(time.Millisecond, func() {
				group.Forget("report")
				forgotten <- true
			})
			defer timer.Stop()
			return read(), nil
		})
	}

	answer := make(chan string)
	stuck := report(func() string { return <-answer })
	<-forgotten
	next := <-report(func() string { return "the report" })
	fmt.Println("next caller:", next.Val)
	answer <- "a late report"
	fmt.Println("stuck caller:", (<-stuck).Val)
	// Output:
	// next caller: the report
	// stuck caller: a late report
}

// A caller that gives up forgets its call unless another has joined it. Forget would
// forget a joined call, too, and the next caller would repeat work that is under way.
func ExampleGroup_ForgetUnshared() {
	var group singleflight.Group
	answer := make(chan struct{})
	lookup := func(host string) <-chan singleflight.Result {
		return group.DoChan(host, func() (any, error) {
			<-answer
			return "the address of " + host, nil
		})
	}

	lookup("a.example")
	fmt.Println("forgotten:", group.ForgetUnshared("a.example"))

	lookup("b.example")
	joiner := lookup("b.example")
	fmt.Println("forgotten:", group.ForgetUnshared("b.example"))
	close(answer)
	fmt.Println("joiner:", (<-joiner).Val)
	// Output:
	// forgotten: true
	// forgotten: false
	// joiner: the address of b.example
}

// Shared is true for every caller of a joined call, also for the one that started it.
// To count the callers that were spared the work, each sets a flag in its own fn. The
// flag is atomic, as fn may still run when its caller has left.
func ExampleResult() {
	var group singleflight.Group
	var worked [10]atomic.Bool
	var results [10]<-chan singleflight.Result
	joined := make(chan struct{})
	for i := range results {
		results[i] = group.DoChan("page", func() (any, error) {
			worked[i].Store(true)
			<-joined
			return "the page", nil
		})
	}
	close(joined)

	shared, spared := 0, 0
	for i := range results {
		if r := <-results[i]; r.Shared {
			shared++
		}
		if !worked[i].Load() {
			spared++
		}
	}
	fmt.Println("shared:", shared)
	fmt.Println("spared:", spared)
	// Output:
	// shared: 10
	// spared: 9
}

// The callers of a call get the same slice, not copies. A caller that changes it
// clones it first: otherwise the others would see the change. For maps, use maps.Clone.
func ExampleDo() {
	var group singleflight.Group
	started, joined := make(chan struct{}), make(chan struct{})
	load := func() ([]string, error) {
		close(started)
		<-joined
		return []string{"sync", "go", "cache"}, nil
	}

	var other <-chan singleflight.Result
	go func() {
		<-started
		other = group.DoChan("tags", func() (any, error) { return load() })
		close(joined)
	}()
	tags, err, _ := singleflight.Do(&group, "tags", load)
	tags = slices.Clone(tags)
	slices.Sort(tags)
	fmt.Println("sorted:", tags, err)
	fmt.Println("other caller:", (<-other).Val)
	// Output:
	// sorted: [cache go sync] <nil>
	// other caller: [sync go cache]
}

// fn's context has no deadline, even if every caller's has one, and is not canceled
// while callers keep coming. So fn sets a timeout. It marks its errors, so that a caller
// can tell fn's timeout from its own.
func ExampleDoContext_timeout() {
	var group singleflight.Group
	errBackend := errors.New("backend failed")
	ask := func(ctx context.Context, limit time.Duration) {
		_, err, _ := singleflight.DoContext(ctx, &group, "report", func(ctx context.Context) (string, error) {
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			<-ctx.Done() // a backend that does not answer
			return "", fmt.Errorf("%w: %w", errBackend, ctx.Err())
		})
		switch {
		case errors.Is(err, errBackend):
			fmt.Println("fn's own:", err)
		case err != nil:
			fmt.Println("the caller's:", err)
		}
	}

	ask(context.Background(), time.Millisecond)
	request, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	ask(request, time.Hour)
	// Output:
	// fn's own: backend failed: context deadline exceeded
	// the caller's: context deadline exceeded
}

// Files include other files, so an fn asks for other keys. It passes on the context
// that it was given, so a cycle is reported as ErrRecursive. With the context of the
// first caller, or with Do, the calls would wait for each other forever.
func ExampleDoContext_recursion() {
	includes := map[string][]string{
		"app.conf":   {"db.conf", "log.conf"},
		"db.conf":    {"log.conf"},
		"left.conf":  {"right.conf"},
		"right.conf": {"left.conf"},
	}

	var group singleflight.Group
	var size func(ctx context.Context, name string) (int, error)
	size = func(ctx context.Context, name string) (int, error) {
		n, err, _ := singleflight.DoContext(ctx, &group, name, func(ctx context.Context) (int, error) {
			sum := 1
			for _, include := range includes[name] {
				n, err := size(ctx, include)
				if err != nil {
					return 0, fmt.Errorf("%s: %w", name, err)
				}
				sum += n
			}
			return sum, nil
		})
		return n, err
	}

	ctx := context.Background()
	fmt.Println(size(ctx, "app.conf"))
	_, err := size(ctx, "left.conf")
	fmt.Println("cycle:", errors.Is(err, singleflight.ErrRecursive))
	// Output:
	// 4 <nil>
	// cycle: true
}

// fn starts a goroutine that asks for fn's key. A context that comes from fn's counts
// as fn, even without its cancellation, and fn would wait for itself. A context that
// comes from the request does not.
func ExampleDoContext_background() {
	var group singleflight.Group
	errs := make(chan error)
	refresh := func(ctx context.Context) {
		_, err, _ := singleflight.DoContext(ctx, &group, "news", func(context.Context) (string, error) {
			return "the next news", nil
		})
		errs <- err
	}

	request := context.Background()
	singleflight.DoContext(request, &group, "news", func(ctx context.Context) (string, error) {
		go refresh(context.WithoutCancel(ctx))
		fmt.Println(<-errs)
		go refresh(context.WithoutCancel(request))
		return "the news", nil
	})
	fmt.Println(<-errs)
	// Output:
	// singleflight: call would wait for itself
	// <nil>
}

// A caller recovers from fn's panic and reports it with the stack of the goroutine
// that fn panicked on. A value that is not a PanicError does not come from fn, so the
// caller panics with it again.
func ExamplePanicError() {
	var group singleflight.Group
	compile := func(pattern string) (re any, err error) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			var p *singleflight.PanicError
			if e, ok := v.(error); !ok || !errors.As(e, &p) {
				panic(v)
			}
			fmt.Println("panic:", p.Value())
			fmt.Println("in MustCompile:", bytes.Contains(p.Stack(), []byte("regexp.MustCompile")))
			err = errors.New("bad pattern")
		}()
		re, err, _ = group.Do(pattern, func() (any, error) {
			return regexp.MustCompile(pattern), nil
		})
		return re, err
	}

	fmt.Println(compile("a("))
	// Output:
	// panic: regexp: Compile(`a(`): error parsing regexp: missing closing ): `a(`
	// in MustCompile: true
	// <nil> bad pattern
}
